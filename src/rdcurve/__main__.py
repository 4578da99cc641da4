from rdcurve.cli import main

main()
