"""DATA: what a person may name as data, and the rows it holds."""
