"""Other people's environments as ours; each module needs the package that it is named after, and says so."""
