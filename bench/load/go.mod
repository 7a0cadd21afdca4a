module meritorder.dev/bench/load

go 1.22
