"""The Triton kernels, one file per operation; import them as ``gflv2.kernels``, in a checkout a link to this folder."""
