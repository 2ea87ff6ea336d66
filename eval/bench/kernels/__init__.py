"""`prm bench kernels`: GPU kernels beside torch's own code, and what their compilers say of them."""
