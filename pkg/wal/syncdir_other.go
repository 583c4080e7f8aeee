//go:build !windows

package wal

import (
	"errors"
	"os"
)

// syncDir makes the entries of a folder durable.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
