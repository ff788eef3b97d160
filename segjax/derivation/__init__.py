"""The proof that a transposed convolution is the transpose of the convolution's matrix: checks, tables, pictures."""
