"""Source data: webdataset tars, read without losing faults, and the procedural demo images."""
