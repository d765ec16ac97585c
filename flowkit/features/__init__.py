"""Token stores: format, writer, reader, extraction, pairs and the training loader."""
