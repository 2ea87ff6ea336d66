"""PASCAL VOC (2007 to 2012), and SBD, which adds instance masks to VOC's pictures.

    VOCdevkit/VOC2012/JPEGImages/<name>.jpg                       the pictures
    VOCdevkit/VOC2012/Annotations/<name>.xml                      classes, boxes, "difficult" and "truncated"
    VOCdevkit/VOC2012/SegmentationObject|SegmentationClass/*.png  of some: palette pictures, 0 background, 255 void
    VOCdevkit/VOC2012/ImageSets/Main/<split>.txt                  "train", "val", "trainval", "test"
    VOCdevkit/VOC2012/ImageSets/Main/<class>_<split>.txt          labels again: 1, -1, 0 for nothing but difficult
    VOCdevkit/VOC2012/ImageSets/Segmentation/<split>.txt          "seg-train", "seg-val", "seg-trainval", "seg-test"

    benchmark_RELEASE/dataset/img/<name>.jpg                      SBD (Hariharan et al., ICCV 2011): the pictures
    benchmark_RELEASE/dataset/inst|cls/<name>.mat                 instances and classes of every pixel, no void
    benchmark_RELEASE/dataset/train.txt, val.txt                  not VOC's: some of "train" are in VOC 2012 val;
    benchmark_RELEASE/dataset/train_noval.txt                     a separate download from SBD's page, without those

Image-level labels are the object names in the XML file; a class whose objects are all difficult is difficult. Where
there is no XML they come from the class lists, or else from SegmentationClass. A picture of a test list with none of
these (VOC 2012 keeps its test annotations) has all classes difficult: nobody says what is in it.

"train_aug" is the set that most work on VOC 2012 segmentation trains on: seg-train and all of SBD, less seg-val, 10582
pictures. It is read from ImageSets/Segmentation/train_aug.txt (or trainaug.txt) or, where SBD lies beside or around
VOCdevkit, put together in the order of names; masks that VOC does not have then come from SBD.

A folder with JPEGImages and SegmentationObject but without lists is taken, too: its pictures are those with masks. If
labelling tools left a class_names.txt there, it says what the numbers in the masks mean.
"""

from .dataset import VocDataset, looks_like
from .files import CLASS_NAMES
from .sbd import SbdDataset
from .sbd import looks_like as looks_like_sbd

__all__ = ["CLASS_NAMES", "SbdDataset", "VocDataset", "looks_like", "looks_like_sbd"]
