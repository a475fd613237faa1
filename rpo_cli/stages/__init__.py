"""One module for each kind of stage: it reads a recipe and earlier artifacts, and makes one artifact."""
