"""The commands `iemas-node` and `iemas`."""

import os

# gRPC's C core logs every refused handshake to stderr by itself; what matters is logged by us, by
# name. It reads this when it is first imported, so it is set before anything else.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
