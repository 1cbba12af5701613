"""The operations inside other people's detectors, one module a package; ``import gflv2`` imports none of them.

Importing the module of a package that is not installed says which pip line to run. docs/integrations.md is the guide.
"""
