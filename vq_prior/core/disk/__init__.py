"""Files that are whole or not there: artefacts, checkpoints, code stores, tensors, locks, records."""
