"""The Triton kernels, one file per operation. Import them as ``gflv2.kernels``: in a checkout that is a link to here."""
