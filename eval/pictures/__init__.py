"""Pictures in and out: files become arrays, answers become overlays, panels, a gallery and COCO's JSON.

`pipeline` and `memory` are for whoever works through many of them.
"""
