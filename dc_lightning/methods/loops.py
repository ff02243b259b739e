"""How often DC and DSA match, and how long their network trains, by images per class (paper, appendix A)."""

import math

import numpy as np

_INNER_EPOCHS = {10: 50, 20: 25, 30: 20, 40: 15, 50: 10}  # paper, appendix A; get_loops of the authors' code


def default_loops(ipc: int) -> tuple[int, int]:
    """Matching steps an outer iteration, and epochs of network training between two of them, for an ipc of at least 1.

    The paper's table has ipc 1, 10, 20, 30, 40, 50. For any other there are ipc matching steps, as in all its rows. The
    epochs are interpolated linearly between the rows, rounded half up; from 10 downwards they stay 50 (with ipc 1
    there is no second step, so that its single epoch is never run), from 50 upwards they stay 10.
    """
    if ipc == 1:
        return 1, 1
    return ipc, math.floor(np.interp(ipc, list(_INNER_EPOCHS), list(_INNER_EPOCHS.values())) + 0.5)
