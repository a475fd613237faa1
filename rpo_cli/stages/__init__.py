"""One module for each kind of stage: it reads a recipe and the artifacts of earlier stages, and makes one artifact."""
