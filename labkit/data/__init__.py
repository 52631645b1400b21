"""Wing 1: a folder of NIfTI files is a cohort."""
