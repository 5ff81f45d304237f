"""What engines share between the contract and their own arithmetic. Imports no engine, no pool and no worker."""
