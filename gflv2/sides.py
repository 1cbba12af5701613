"""The four sides of a box, in the order that every tensor with one entry a side has."""

SIDES = ("left", "top", "right", "bottom")
