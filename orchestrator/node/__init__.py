"""What a machine can do and is: doctor, calibration, data sheets."""
