//go:build !race

package batch

const thorough = true
