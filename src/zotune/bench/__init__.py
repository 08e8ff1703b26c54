"""What a step costs in time and memory: measuring it, and foretelling it from a model's shapes alone.

`clock` and `peak` measure, `workload` and `variants` are what is measured, `shapes` and `costs` foretell, `report`,
`notes` and `launch` are `zotune bench`.
"""
