"""Drawing from a MODEL into folders, and the likelihood of what is given."""
