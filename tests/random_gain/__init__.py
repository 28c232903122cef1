"""Random servers, handlers and peers of callback servers, and the books that judge them.

What a plan does
================
A server runs in threads of its own; the thread that runs the plan is nearly everybody else: all
peers, and a thread of the program that asks something of a connection. A process of its own is a
stranger that has the server's sockets, too, where a plan has one. The thread goes through the steps
in their order, and between two of them moves what its peers have to send and to receive. A
step of a handler says what one call of a callback does; those that no step speaks of do what
the options name.

    drawing.py    a plan by a seed
    faults.py     what may be found
    rules.py      what the books depend on
    books.py      what is known of each connection, and what must be true of it
    patterns.py   bytes that show where they belong
    handler.py    the callbacks, as the plan has them
    peers.py      streams: what the other side of a connection does
    datagrams.py  the peers of UDP, and their books
    stranger.py   another process that has the server's sockets
    places.py     where a server listens, and what it is made with
    host.py       where a server runs, and how it is ended
    quiet.py      what is looked at while nothing can move
    world.py      a plan, from its first step to the last look at the books

What the books say
==================
They know no fault by name. Bytes are those of a pattern, so that one that is lost, doubled or
moved shows where it is read. Every callback is noted, and is legal where it stands. When the
plan has the server *settle*, all that can happen happens within a bound, and with nobody's
help: nothing is asked of a worker meanwhile, since that alone would wake it. While nothing can
move, no CPU is taken, and the kernel has nothing of ours to try again. At the end everything
that was counted agrees, and nothing is left.

What holds always and what depends is in `books.Account`. A rule that a legal behaviour breaks
is a wrong rule, and a wrong rule hides faults: so each has its reason beside it.
"""
