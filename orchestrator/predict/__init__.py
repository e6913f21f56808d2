"""What a layout would reach on hardware that is not here: a cost model without torch or Ray.

It is made of a placement, figures of the hardware and a few factors that are fitted for an engine.
Formulas: docs/predictions.md.
"""
