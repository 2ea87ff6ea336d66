"""Segment proposals without any training: hierarchical grouping of superpixels, and level sets of brightness.

After the idea of Selective Search (Uijlings et al., IJCV 2013) on the superpixels of Felzenszwalb and Huttenlocher
(IJCV 2004): neighbouring regions are merged greedily, the most similar pair first, and each region on the way is a
proposal. Several superpixel scales, colour spaces and similarity measures make for variety. Late in the grouping two
neighbours are a proposal also where each is merged with something else (the idea of combinatorial grouping,
Arbelaez et al., CVPR 2014). Blobs on an even ground, cells above all, are found more exactly as connected components
of a thresholded picture: those are proposals too.

Every source of regions is a `layers.Layer`: a map that gives each pixel an integer, its rank, and regions as intervals
of ranks. A region's mask is made only once it is a serious candidate.

Nothing here is learned from masks. The few numbers of the ranking were set by hand, to be good on every second of 100
COCO photographs with masks; `proposals.quality` measures what comes out, on the other half.
"""

from .generator import VERSION, GroupingSettings, check, generate, rated

__all__ = ["VERSION", "GroupingSettings", "check", "generate", "rated"]
