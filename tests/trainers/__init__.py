"""Tests of the adapters to other people's trainers, each in an environment of its own: `make test-trainers`."""
