"""Files that run inside other people's trainers. They import nothing of AWorld, which need not be installed there."""
