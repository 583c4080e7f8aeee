//go:build !linux

package engine

func dropExecutable() {}
