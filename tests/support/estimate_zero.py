"""ZeRO-3 sizes in which a tiny model behaves as a large one: a part of it is whole at a time."""

ZERO = {
    "stage": 3,
    "stage3_prefetch_bucket_size": 25_000,
    "stage3_max_live_parameters": 100_000,
    "stage3_max_reuse_distance": 100_000,
    "stage3_param_persistence_threshold": 2_000,
    "reduce_bucket_size": 10_000,
}
