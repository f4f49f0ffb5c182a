"""Every layout of published checkpoints, one file of keys a family; `load.py` does the rest."""

from model.published import backbone, hrnet, segformer, semanticflow, semseg, sketchfill

LAYOUTS = (
    *sketchfill.LAYOUTS,
    *semseg.LAYOUTS,
    *semanticflow.LAYOUTS,
    *segformer.LAYOUTS,
    *hrnet.LAYOUTS,
    *backbone.LAYOUTS,
)
