"""What a variant means, in eager torch, in fp64 or rounded as a working dtype rounds."""
