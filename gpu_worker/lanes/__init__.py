"""Lanes: several worker processes that share one device, each a worker of its own to Redis.

What a worker does in Python for each chunk fills a core long before a GPU is full.  So one process, the
group, has the device and nothing else, and each of its lanes is an ordinary worker whose `Steps` launch in
memory that both share: rows in, symbols out.  The group merges what lanes have launched into steps of the
device.  Whatever the batch, a stream's results are the same, so nothing else changes.

segment.py  memory without a name, and what stands where in it    bell.py    wakes the other side
wire.py     rare requests over a socket                           facts.py   what a lane is told
steps.py    the lane's `Steps`                                    link.py    its end of the socket
port.py     the group's side of one lane                          server.py  merges and runs steps
group.py    the group's process                                   lane.py    a lane's process
monitor.py  what the group shows an operator, of its lanes too
"""
