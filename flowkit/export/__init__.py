"""Hand-over of tokens to models that were built on CLIP ViT-L/14."""
