"""Which classifiers of torchvision, timm and Hugging Face pass: each with random weights, made fully convolutional and
walked through. Of each family the smallest member is tried. The table of docs/architectures.md is made from it:

    python -m prm.parity_tests.survey --json eval/results/architectures.json      # needs timm and transformers
    python -m prm.parity_tests.survey --page eval/results/architectures.json      # prints the table
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from prm.accelerated import PeakBackprop, fully_convolutional
from prm.files import atomic_write, json_bytes, reason

SIZE = 224
TIMM = {
    "byobnet": "test_byobnet", "convmixer": "convmixer_768_32", "convnext": "test_convnext",
    "cspnet": "cs3darknet_focus_s", "cspnext": "cspnext_tiny", "densenet": "densenet121", "dla": "dla46x_c",
    "dpn": "dpn48b", "efficientnet": "test_efficientnet", "fasternet": "fasternet_t0", "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf", "ghostnet": "ghostnet_050", "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0", "hrnet": "hrnet_w18_small", "inception_next": "inception_next_atto",
    "inception_resnet_v2": "ens_adv_inception_resnet_v2", "inception_v3": "adv_inception_v3",
    "inception_v4": "inception_v4", "lcnetv2": "lcnetv2_small", "mambaout": "test_mambaout",
    "metaformer": "poolformerv2_s12", "mobilenetv3": "mobilenetv3_small_050", "nasnet": "nasnetalarge",
    "nfnet": "test_nfnet", "pnasnet": "pnasnet5large", "rdnet": "rdnet_tiny", "regnet": "regnetx_002",
    "repghost": "repghostnet_050", "repvit": "repvit_m1", "res2net": "res2next50", "resnest": "resnest14d",
    "resnet": "test_resnet", "resnetv2": "resnetv2_18", "rexnet": "rexnet_100", "selecsls": "selecsls42",
    "senet": "legacy_seresnet18", "sknet": "skresnet18", "starnet": "starnet_s050", "tresnet": "tresnet_m",
    "vgg": "vgg11", "vovnet": "ese_vovnet19b_slim_dw", "xception": "legacy_xception",
    "xception_aligned": "xception41p",
}  # fmt: skip
"""timm's model files without attention, and the smallest member of each."""
OTHERS = {
    "attention": (
        "beit byoanet cait coat convit cpubone crossvit csatv2 davit deepseek_vit deit edgenext efficientformer "
        "efficientformer_v2 efficientvit_mit efficientvit_msra eva gcvit gemma4_vit hiera hieradet_sam2 iformer levit "
        "lowformer maxxvit mobilenetv5 mobilevit mvitv2 naflexvit nest nextvit pit pvt_v2 qwen3_vit shvit swiftformer "
        "swin_transformer swin_transformer_v2 swin_transformer_v2_cr tiny_vit tnt twins visformer vision_transformer "
        "vision_transformer_hybrid vision_transformer_relpos vision_transformer_sam vitamin volo xcit"
    ),
    "linear layers over positions": "mlp_mixer",
    "recurrence over positions": "sequencer",
    "state spaces": "efficientvim",
}
"""timm's other model files, by what their smallest member has in place of convolutions."""
HUGGING_FACE = ("Bit", "ConvNext", "ConvNextV2", "EfficientNet", "FocalNet", "HGNetV2", "MobileNetV1", "MobileNetV2",
                "PoolFormer", "RegNet", "ResNet", "TextNet")  # fmt: skip
"""Hugging Face's image classifiers without attention, each as its configuration comes."""
TRANSFORMERS = ("maxvit", "swin_transformer", "vision_transformer")
"""torchvision's files with attention."""

Build = Callable[[], nn.Module]


def torchvisions() -> Iterator[tuple[str, str, Build]]:
    """Family, member and how to build it: the member with the fewest parameters of every file of torchvision's."""
    from torchvision import models

    families: dict[str, list[tuple[int, str]]] = {}
    for name in models.list_models(module=models):
        count = next(iter(models.get_model_weights(name))).meta["num_params"]
        families.setdefault(models.get_model_builder(name).__module__.rpartition(".")[2], []).append((count, name))
    for family, members in sorted(families.items()):
        name = min(members)[1]
        yield family, name, lambda name=name: models.get_model(name)


def timms() -> Iterator[tuple[str, str, Build]]:
    import timm

    for family, name in TIMM.items():
        yield family, name, lambda name=name: timm.create_model(name)


def hugging_faces() -> Iterator[tuple[str, str, Build]]:
    import transformers

    for family in HUGGING_FACE:
        config = getattr(transformers, f"{family}Config")
        network = f"{family}ForImageClassification"
        yield family, network, lambda config=config, network=network: getattr(transformers, network)(config())


LIBRARIES = {"torchvision": torchvisions, "timm": timms, "transformers": hugging_faces}


def tried(build: Build) -> str:
    """"" if a classifier passes: maps, and walks from two peaks whose mass arrives or leaks; else the line it gets."""
    torch.manual_seed(0)
    model = build().eval()
    try:
        run = PeakBackprop(fully_convolutional(model)).prepare(torch.rand(1, 3, SIZE, SIZE))
        peaks = torch.tensor([[0, 0, 0, 0], [0, 1, run.maps.shape[2] // 2, run.maps.shape[3] // 2]])
        found = run.prms(peaks)
    except (NotImplementedError, ValueError) as error:
        return reason(error).partition("; ")[0]
    assert bool((found.prms >= 0).all() and ((found.leaked >= 0) & (found.leaked < 1 + 1e-5)).all())
    assert bool(((found.prms.sum((1, 2)) - 1).abs()[~found.empty] < 1e-3).all())
    return ""


def survey(libraries: list[str]) -> dict:
    """What `page` shows."""
    rows = []
    for library in libraries:
        for family, name, build in LIBRARIES[library]():
            started = time.perf_counter()
            refused = tried(build)
            rows.append({"library": library, "family": family, "member": name, "refused": refused,
                         "seconds": round(time.perf_counter() - started, 1)})  # fmt: skip
            print(f"{library} {family} ({name}): {refused or 'passes'}", file=sys.stderr, flush=True)
    versions = {name: version(name) for name in ("torch", *libraries)}
    command = "python -m prm.parity_tests.survey " + " ".join(sys.argv[1:])
    return {"command": command, "seconds": round(sum(row["seconds"] for row in rows), 1),
            "date": date.today().isoformat(), "versions": versions, "rows": rows}  # fmt: skip


def page(found: dict) -> str:
    """The table of docs/architectures.md: of each library the counts, the families that pass, those that do not."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [f"Tried on {found['date']} with {versions}, {SIZE} x {SIZE} pixels, random weights:", "",
             "| library | convolutional families that pass | refused |", "|---|---|---|"]  # fmt: skip
    for library in dict.fromkeys(row["library"] for row in found["rows"]):
        rows = [r for r in found["rows"] if r["library"] == library
                and not (library == "torchvision" and r["family"] in TRANSFORMERS)]  # fmt: skip
        passing = [row for row in rows if not row["refused"]]
        names = ", ".join(row["family"] for row in passing)
        refused = "; ".join(f"{row['family']} ({row['refused']})" for row in rows if row["refused"])
        lines.append(f"| {library} | {len(passing)} of {len(rows)}: {names} | {refused or '-'} |")
    others = "; ".join(f"{why}: {names.replace(' ', ', ')}" for why, names in OTHERS.items())
    lines += ["", f"Left out, since they are not convolutional: of torchvision {', '.join(TRANSFORMERS)}; of timm's "
              f"files, by what is there in place of convolutions, {others}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="try them, and write what was found")
    parser.add_argument("--page", type=Path, help="print the table of what was found")
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="only this one; may be repeated")
    given = parser.parse_args()
    if given.json:
        found = survey(given.library or list(LIBRARIES))
        atomic_write(given.json, json_bytes(found))
    if given.page:
        print(page(json.loads(given.page.read_text())), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
