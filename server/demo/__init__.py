"""The demo: a coordinator and a few devices as real processes on this machine, watched and measured from outside.

``scenario`` says what is learned and lays out the devices' data, ``fleet`` starts and ends the processes, ``watch``
follows them over the REST API, ``memory`` measures them, ``alone`` trains each device's network without the others,
``report`` tells the outcome. Devices are started as ``bitfleet-client`` would be on their own machines.
"""
