"""Where the public data sets are, and what is known of their archives."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A file to download. One that is neither .zip nor .tar nor .tgz is put at `holds` as it is."""

    url: str
    """The official address."""
    size: int
    """Bytes; to the byte unless `rounded`."""
    md5: str | None
    """32 hexadecimal digits, or None where nobody has published a checksum."""
    unpacked: int
    """Bytes on disk once unpacked: an estimate, rounded up."""
    holds: str
    """A pattern, relative to the data set's folder, that something matches once the archive is unpacked."""
    rounded: bool = False
    """Whether `size` is only known roughly."""
    bare: bool = False
    """Whether the archive may lack the first folder of `holds`, which is then put in front of all that it contains."""

    @property
    def file(self) -> str:
        """The file's name, which it keeps on a mirror and on disk."""
        return self.url.rsplit("/", 1)[1]


_VOC, _COCO = "http://host.robots.ox.ac.uk/pascal/VOC", "http://images.cocodataset.org"
_SBD = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"

# Data set -> part -> archive. http where the official server has no valid certificate for https: the sum is checked.
SOURCES: dict[str, dict[str, Archive]] = {
    "voc2012": {
        "trainval": Archive(
            f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd",
            2_100_000_000, "VOCdevkit/VOC2012/SegmentationObject/*.png",
        ),
    },
    "voc2007": {
        "trainval": Archive(
            f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", 460_032_000, "c52e279531787c972589f7e41ab4ae64",
            500_000_000, "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt",
        ),
        "test": Archive(
            f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", 451_020_800, "b6e924de25625d8de591ea690078ad9f",
            500_000_000, "VOCdevkit/VOC2007/ImageSets/Main/test.txt",
        ),
    },
    "coco2014": {
        "annotations": Archive(
            f"{_COCO}/annotations/annotations_trainval2014.zip", 252_872_794, "0a379cfc70b0e71301e0f377548639bd",
            900_000_000, "annotations/instances_val2014.json",
        ),
        "train": Archive(
            f"{_COCO}/zips/train2014.zip", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88",
            13_900_000_000, "train2014/*.jpg",
        ),
        "val": Archive(
            f"{_COCO}/zips/val2014.zip", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3",
            6_900_000_000, "val2014/*.jpg",
        ),
    },
    "coco2017": {
        "annotations": Archive(
            f"{_COCO}/annotations/annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c",
            900_000_000, "annotations/instances_val2017.json",
        ),
        "train": Archive(
            f"{_COCO}/zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2",
            19_800_000_000, "train2017/*.jpg",
        ),
        "val": Archive(
            f"{_COCO}/zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80",
            850_000_000, "val2017/*.jpg",
        ),
    },
    "sbd": {
        "benchmark": Archive(
            f"{_SBD}/benchmark.tgz", 1_419_539_633, "82b4d87ceb2ed10f6038a1cba92111cb",
            1_800_000_000, "benchmark_RELEASE/dataset/inst/*.mat",
        ),
        "train_noval": Archive(
            "https://www.cs.cornell.edu/~bharathh/train_noval.txt", 67_500, "79bff800c5f0b1ec6b21080a3c066722",
            70_000, "benchmark_RELEASE/dataset/train_noval.txt", rounded=True,
        ),
    },
    "bbbc038": {
        "train": Archive(
            "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip", 83_000_000, None,
            250_000_000, "stage1_train/*/images/*.png", rounded=True, bare=True,
        ),
    },
}  # fmt: skip
