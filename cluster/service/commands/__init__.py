"""The commands `mint serve`, `mint service`, `mint service-file` and `mint token`."""
