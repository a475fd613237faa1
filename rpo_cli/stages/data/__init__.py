"""The data stage: tables of texts from the embedded world, files, or published sets."""
