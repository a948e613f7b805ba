"""Runs in the peers' environment: statistics and distances of spike trains by elephant, to a file.

python elephant_reference.py input.npz output.npz
"""

import sys

import numpy as np


def main(source, target):
    import elephant
    import neo
    import quantities as pq
    from elephant.conversion import BinnedSpikeTrain
    from elephant.spike_train_dissimilarity import van_rossum_distance, victor_purpura_distance

    raster = np.load(source)["z"]  # [time, unit], steps of 1 ms
    stop = len(raster) * pq.ms
    trains = [neo.SpikeTrain(np.flatnonzero(unit) * pq.ms, t_stop=stop) for unit in raster.T]
    intervals = [elephant.statistics.isi(train) for train in trains]
    np.savez(
        target,
        rate=[elephant.statistics.mean_firing_rate(t).rescale("Hz").item() for t in trains],
        cv=[float(elephant.statistics.cv(i.magnitude)) for i in intervals],
        cv2=[float(elephant.statistics.cv2(i)) for i in intervals],
        correlation=elephant.spike_train_correlation.correlation_coefficient(
            BinnedSpikeTrain(trains, bin_size=20 * pq.ms, t_start=0 * pq.ms, t_stop=stop), binary=False
        ),
        van_rossum=van_rossum_distance(trains, 15 * pq.ms),
        victor_purpura=victor_purpura_distance(trains, 0.08 / pq.ms),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
