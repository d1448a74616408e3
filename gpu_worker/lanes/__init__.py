"""Lanes: several worker processes that share one device, each a worker of its own to Redis.

A worker's Python work for each chunk fills a core long before a GPU is full. So one process, the group, owns
the device and nothing else, and each of its lanes is an ordinary worker whose `Steps` launch in memory that
both share: rows in, symbols out. The group merges the flights of lanes into steps of the device. A stream's
results do not depend on the batch, so nothing else changes.

segment.py  shared memory, and its layout                         bell.py    wakes the other side
wire.py     rare requests over a socket                           facts.py   the group's facts for a lane
steps.py    the lane's `Steps`                                    link.py    its end of the socket
port.py     the group's side of one lane                          server.py  merges and runs steps
group.py    the group's process                                   lane.py    a lane's process
monitor.py  metrics and health of the group and its lanes
"""
