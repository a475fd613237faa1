"""Planning, kind by kind: each file knows the inputs of its stages, and rests on the file before it."""
