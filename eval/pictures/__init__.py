"""Pictures in and out: files become arrays, answers become overlays, panels, a gallery and COCO's JSON."""
