"""Random peers, surroundings and use, on the machine's own ring; books alone judge.

What is here knows no fault by name. A plan (``draw.py``) opens some *places*: a place is a file
of ours, of any kind, with what is at its other end and who else has it. Its steps are calls of
ours with random arguments and cancels, acts of the peer, acts of a *rival*, who has the same
file (in this process, or the *stranger*, a process of its own), options, closes, and *quiet
stretches*. ``conduct.py`` does them in turn, in one task of the run; calls are tasks beside it.

What may happen is not foreseen call by call. It is judged by rules that hold for all:

- bytes and messages (``books.py``): what arrived can be put together of what was sent; what was
  cancelled has not happened;
- an error has a reason in what was done at its place (``places.py``);
- in a quiet stretch nobody does anything. What still waits then must have to: poll(2) says that
  it is not ready. Nothing takes CPU, and nothing is with a worker of the kernel's, or kept by
  the kernel for its own retry;
- a wait for readiness tells of a file that is ready;
- when peers read all and say all, every call ends, in bounded time;
- in the end no descriptor is left, nothing is in the ring, and the same work done once more
  takes no more memory.

Three kinds of plans have drivers of their own. `stock` does a plan on stock trio as well, as a
model: files of every type, who shares them, what is closed under whom. `hosts` has a guest run's
host act while the run sleeps, for which no rule within the run has eyes. `crowd` has many streams
to which something comes in one turn, more than the ring has buffers for.

The rules are those of stock trio as well: with ``URING_TRIO_PEERS_BACKEND=epoll`` in the
environment the same plans run there. Stock is no control of the CPU, and `conduct.NOT_ON_STOCK`
is left out.

A datagram with a wrong checksum needs a raw socket: where this user may have none, that act does
nothing, and the run notes it.
"""
