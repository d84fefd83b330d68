"""The same results in less time; each file is optional and names its plain twin."""
