"""What `prm bench` measures: time and memory of the fast path beside its competitors.

One process measures one case: a network and a size, say. Its answers are compared first, and a path whose answer is
wrong has no speed. Then come the rounds; each runs every variant in turn, so that whatever slows the machine down for a
while slows them all. Medians and spread are over the rounds, and so are ratios: of the two times of one round.

The names below are what the command offers; nothing here imports torch.
"""

NETWORKS = ("smallnet", "resnet18", "resnet50", "vgg16")
COMPETITORS = ("autograd", "autograd-channels-last", "zennit", "full")
PEAK_SIZES = ("16x20x14x14", "16x20x112x112", "16x80x112x112")
STAGES = ("forward", "peaks", "walk", "proposals", "retrieval")
