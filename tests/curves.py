from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_curves(folder):
    """What TensorBoard would show of a run: each curve as (step, value) pairs, and the events with the images."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})  # all, not a random sample
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events
