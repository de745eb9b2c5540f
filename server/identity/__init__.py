"""Who is who: the fleet's certificate authority, enrolled devices, people's API keys, and what they changed.

It knows neither gRPC nor HTTP: ``server.rpc`` and ``server.api`` ask it who a peer is and what that peer may do.
"""
