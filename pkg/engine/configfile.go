package engine

import (
	"fmt"

	"github.com/alecthomas/kingpin/v2"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/retention"
)

// fileValue is one value of a setting in a file.
type fileValue struct {
	text string
	line int
}

// fileValues returns the values of a setting: one, or a list. With pairs, a map stands for a value 'key: value' for each of its entries.
func fileValues(name string, n *yaml.Node, pairs bool) (out []fileValue, err error) {
	switch {
	case n.Kind == yaml.SequenceNode:
		for _, one := range n.Content {
			values, err := fileValues(name, one, pairs)
			if err != nil {
				return nil, err
			}
			out = append(out, values...)
		}
		return out, nil
	case n.Kind == yaml.MappingNode && pairs:
		for i := 0; i < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if key.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: %s must have its selectors in single quotes, as braces mean something else to YAML", key.Line, name)
			}
			out = append(out, fileValue{key.Value + ": " + value.Value, key.Line})
		}
		return out, nil
	}
	v := fileValue{line: n.Line}
	if n.Decode(&v.text) != nil {
		return nil, fmt.Errorf("line %d: %s must be a value or a list of values", n.Line, name)
	}
	return []fileValue{v}, nil
}

// takesPairs tells whether a flag's values are written as YAML writes the entries of a map.
func takesPairs(flag kingpin.Value) bool {
	if n, ok := flag.(interface{ unnamed() kingpin.Value }); ok {
		flag = n.unnamed()
	}
	_, ok := flag.(*retention.Rules)
	return ok
}
