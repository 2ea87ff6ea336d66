"""ImageNet's 1000 classes as people speak of them: 118 breeds are a dog, five coats are a cat, a valley is no thing.

Indices and class names are torchvision's. WordNet, whose order the indices follow, says what belongs together.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from prm import InputError

# Word -> the classes that it stands for. Words of COCO and VOC are among them where ImageNet has the thing.
GROUPS = {
    "shark": "2-4", "ray": "5-6", "chicken": "7-8", "salamander": "25-29", "frog": "30-32", "turtle": "33-37",
    "lizard": "38-48", "crocodile": "49-50", "snake": "52-68", "spider": "72-77", "grouse": "80-83",
    "quail": "85-86", "parrot": "87-90", "duck": "97-98", "slug": "114-115", "crab": "118-121,125",
    "lobster": "122-124", "stork": "127-128", "heron": "131-133", "sandpiper": "139-142", "whale": "147-148",
    "dog": "151-268", "wolf": "269-272", "wild dog": "273-275", "fox": "277-280", "cat": "281-285",
    "leopard": "288-290", "bear": "294-297", "beetle": "300,302-307", "grasshopper": "311-312",
    "dragonfly": "319-320", "butterfly": "321-326", "rabbit": "330-332", "horse": "339", "pig": "341-343",
    "cow": "345", "sheep": "348-349", "antelope": "351-353", "weasel": "356-359", "ape": "365-369",
    "monkey": "370-382", "lemur": "383-384", "elephant": "385-386", "fish": "0-1,389-397",
    "songbird": "10-16,18-20", "rifle": "413,764", "clock": "409,530,892", "watch": "531,826", "airplane": "404,895",
    "car": "436,468,511,609,627,656,661,751,817", "bus": "654,779,874", "truck": "555,569,675,717,864,867",
    "motorcycle": "665,670", "bicycle": "444,671", "train": "466,547,565,705,820", "boat": "472,554,576,625,814",
    "sailboat": "484,780,871,914", "ship": "403,510,628", "bottle": "440,720,737,898,907", "cup": "504,968",
    "guitar": "402,546", "chair": "423,559,765", "couch": "831", "dining table": "532", "tv": "664,782,851",
    "laptop": "620,681", "keyboard": "508,878", "cell phone": "487", "telephone": "528,707", "camera": "732,759",
    "oven": "766,827", "remote": "761", "mouse": "673", "handbag": "728,748", "tie": "451,457,906",
    "sunglasses": "836-837", "swimsuit": "445,638-639", "ball": "429-430,522,574,722,768,805,852,890",
    "wine glass": "572", "bowl": "659,809", "bench": "703", "bed": "564", "toilet": "861", "sink": "896",
    "teddy bear": "850", "hot dog": "934", "hair drier": "589", "skis": "795", "squash": "940-942",
    "mushroom": "947,991-997",
}  # fmt: skip
# What stands in two groups, or belongs to another as a rule: only words on the command line reach it.
ALIASES = {
    "bird": "7-24,80-100,127-146", "seal": "150", "insect": "300-326", "panda": "387-388", "lion": "291",
    "tiger": "292", "sofa": "831", "motorbike": "665,670", "aeroplane": "404,895",
    "tvmonitor": "664,782,851", "pottedplant": "738", "potted plant": "738", "vase": "883", "hair dryer": "589",
    "wolf dog": "248-250", "husky": "248-250", "owl": "24", "penguin": "145", "phone": "487,528,707",
    "vehicle": "404,407,436,444,466,468,511,547,555,569,609,627,654,656,661,665,670,671,675,705,717,734,751,779,817,"
    "820,829,864,867,874",
    "sports ball": "429-430,522,574,722,768,805,852,890", "tennis racket": "752", "sandwich": "933",
}  # fmt: skip
# Places and landscapes: where a picture was taken, and no thing in it.
SCENES = "410,415,424,454,467,498,509,580,582,598,624,634,663,706,743,762,788,819,860,865,916,970-980"


def spread(ranges: str) -> tuple[int, ...]:
    """The indices of "281-285,287"."""
    found: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def usual_groups(names: list[str]) -> dict[str, list[int]]:
    """Every thing under one word, name -> indices: `GROUPS`, and each class that is in none of them and no scene."""
    groups = {word: list(spread(ranges)) for word, ranges in GROUPS.items()}
    taken = {k for members in groups.values() for k in members} | set(spread(SCENES))
    return groups | {name: [k] for k, name in enumerate(names) if k not in taken and name not in groups}


def classes_of(words: Iterable[str], names: list[str]) -> dict[str, list[int]]:
    """What each word stands for, word -> indices: a group of `GROUPS` or `ALIASES`, else the classes that have this
    name, else those whose name ends in the word ("chair": rocking chair). Upper and lower case are the same.

    names: of the network's classes. Raises InputError for a word that stands for none.
    """
    found = {word: members_of(word, names) for word in words}
    for word, members in found.items():
        if not members:
            near = get_close_matches(word.casefold(), [*GROUPS, *ALIASES, *names], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it knows {len(names)} things, not people"
            raise InputError(f"the network knows no class {word!r}; {hint}")
    return found


def members_of(word: str, names: list[str]) -> list[int]:
    """The indices that a word stands for, rising; none where it stands for nothing."""
    plain = word.strip().casefold().replace("_", " ")
    for table in (GROUPS, ALIASES):
        if plain in table:
            return list(spread(table[plain]))
    own = [k for k, name in enumerate(names) if name.casefold() == plain]
    return own or [k for k, name in enumerate(names) if plain and name.casefold().endswith(f" {plain}")]
