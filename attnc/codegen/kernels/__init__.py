"""One file a pass: what each kernel computes, as a graph of tile operations."""
